"""All attention of the model: text over itself, text over images, an image over itself.

attend      the entry, its one backward pass, blocks of images, rows that share their keys
inputs      what attention reads, at each level
spread      the same over the devices of a mesh, with explicit collectives
chunks      the same on one device, a chunk of images at a time
backends    THE table of what computes one block: plain XLA, splash on TPUs, cuDNN on GPUs
parts       attention over some of the keys, and merging it with attention over the others
visibility  which keys a position sees

Each calls only those below it.
"""
