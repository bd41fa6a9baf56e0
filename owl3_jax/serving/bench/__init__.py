"""A load generator for servers of vision models that speak OpenAI's API: `owl3 serve-bench`. Needs no JAX.

pictures     photographs cut by a seed, or those of a folder
prompts      the questions that come with it, or those of a file
workload     which conversations are held, drawn by a seed
bodies       their requests as bytes, made ahead of the load
events       server-sent events
answer       one streamed answer
client       one request over HTTP, whatever becomes of it
record       the figures of one request
load         closed loop and open loop
runs         warm-up, the load, and the same one after the other
statistics   what the figures say
report       the table, and the JSON file
plot         the picture
"""
