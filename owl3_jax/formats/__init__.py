"""How checkpoint directories look on disk: Hugging Face's layout, this project's own two, and the files that they hold.

checkpoint     which of the three a directory is, and the architecture that it holds
config_json    Hugging Face: config.json
weight_files   Hugging Face: safetensors (and PyTorch's .bin), read tensor by tensor
weight_writer  Hugging Face: safetensors, written tensor by tensor
converted      a converted directory: orbax and all that the way back needs
workdir        a training run's last checkpoint
json_files     JSON objects whose values are checked before they are used
bundled        the checkpoints that ship with the package
errors         the one error that all of them raise

Nothing here imports jax: the processes that load data read tokenizers and settings from these directories too.
"""
