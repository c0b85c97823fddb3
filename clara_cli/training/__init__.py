"""What `pretrain` and `train` share: a run from its settings to its checkpoint, the loop, the run
folder, validation, pools retrieved while training. Knows no terminals.
"""
