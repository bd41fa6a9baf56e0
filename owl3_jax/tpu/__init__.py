"""The parts of `tools/compile_tpu.py`: compiling the real programs for TPUs that are not there, and reading what came out.

chips, topology     what there is to compile for
programs            what is compiled: train step, and what answers a prompt, on abstract arguments
compiled            compiling, and what the compiler says of memory
hlo                 the text of a compiled module: loops, branches; read by collectives and traffic
report, search      what the user sees
both_ways           for tools/long_sequences.py
"""
