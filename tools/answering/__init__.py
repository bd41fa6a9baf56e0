"""What generate.py and chat.py share: their flags, files of requests and results, batches, a terminal's completion."""
