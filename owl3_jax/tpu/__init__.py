"""What `owl3 compile` is made of: compiling the real programs for TPUs that are not present, and reading the result.

chips, topology       what to compile for
programs              what to compile: the train step and the programs that answer a prompt, on abstract arguments
compiled              compiling, and the compiler's numbers on memory
collectives, traffic, images   what the text of a compiled module (`owl3_jax.hlo`) says
report, search        what the user sees
"""
