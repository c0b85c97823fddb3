"""The method in tensors: roles, memory, losses, training loop. Knows nothing of text files,
terminals or indexes."""
