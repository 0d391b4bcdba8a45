"""Files: atomic files and folders, a cache of tensors keyed by their content, checkpoints without pickles, loaders of
image data, and checks of arguments. Independent of diffusion. Read ``files`` first."""
