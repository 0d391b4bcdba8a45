"""Files: atomic files and folders, a cache of tensors keyed by their content, checkpoints without pickles, and loaders
of image data. Independent of diffusion. Read ``files`` first."""
