"""Text, images and videos to what the model reads, in numpy, Pillow, PyAV and tokenizers.

chat             messages, placeholders, and the chat layout: messages to chunks of text
tokenizer        chunks to token ids
tokenizer_files  the tokenizer of a checkpoint directory
images           anything that is an image to upright RGB
crops            a large image as a grid of squares
video            files, folders and lists of frames, by `video_sampling`, `video_frames` and `video_file`
media            pictures and videos: their text and their views
processor        all of it: one `Sample` per conversation
settings         processor.json, and the settings that follow from a checkpoint
batch            samples to the batch form
"""
