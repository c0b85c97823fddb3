"""What tests import from each other: tiny models, worlds, servers and scripted language models."""
