"""Answers: prompts are read into caches once, then a compiled loop decodes on the device.

engine, session            batches of prompts; one conversation that keeps its caches
batcher, requests, results  files of requests to files of results, in batches of similar prompts
prompt_sizes               few batch sizes for many prompts
context                    the caches of a batch of prompts, and what can still be added to them
answers, beam_answers      answers in progress: sampling, beam search
runtime                    parameters on their devices; calls the compiled programs
programs, beams            the compiled programs
caches, buckets, memory    allocating caches, the sizes they are padded to, whether they fit
batched                    items in groups
choose, sampling           the next token; the settings by which it is chosen
text_stream                token ids to text, as soon as it is final
feature_cache              features of images seen before
quantize                   int8 weights
"""
