"""What the model's parts are built from: parameters and linear maps, norms, RoPE, int8, rematerialisation, layer stacks."""
