"""Released checkpoints in and out: official names and layouts <-> our parameters, by one table that reads both ways.

table          the table: names and layout changes, on shapes alone
weight_files   safetensors (and PyTorch's .bin) read tensor by tensor
weight_writer  safetensors written tensor by tensor
official       an official directory as our parameters, checked whole
orbax_params   the same parameters in an orbax checkpoint
converted      a converted directory: orbax and all that the way back needs
workdir        a training run's last checkpoint
stored         the two of them, opened alike
directories    whole directories there and back
load           parameters from any kind of directory, onto a mesh
parts          parameters from a SigLIP and a Qwen2
cases          recorded inputs and outputs to hold a model against
comparison     two models' outputs held against each other
"""
