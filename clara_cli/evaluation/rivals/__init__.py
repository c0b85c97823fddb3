"""Other people's systems beside ours: servers, retrievers, text compressors, tuned readers, and
memory compressors that run their own code in another process. `registry` lists them all; nothing
here ever runs code that comes with weights inside this process.
"""
