"""Kernels: source, patches, configuration, build, and the images that come out of them."""
