"""What the model's parts are built from.

linear        parameters with logical axis names, and the linear map
norms, rope   RMSNorm, rotary position embedding
quantized     int8 instead of floats
stacks        keys and values of all layers, in one stack or in separate buffers
remat         what a block keeps for its backward pass
padding       padding to whole multiples
vision_batch  the images of all rows as one batch over all devices
"""
