"""Released checkpoints in and out: official names and layouts <-> our parameters, by one table that reads both ways.

table         the table: names and layout changes, on shapes alone
official      an official directory as our parameters, checked whole
orbax_params  the same parameters in an orbax checkpoint
converted     writes a converted directory
stored        opens converted directories and training runs alike
directories   whole directories, in both directions
load          parameters from any kind of directory, onto a mesh
parts         parameters from a SigLIP and a Qwen2
cases         recorded inputs and outputs to compare a model with
comparison    the outputs of two models, compared

`owl3_jax.formats` reads and writes the files themselves.
"""
