"""Data sets, and the pipeline from their records to training batches.

readers     formats that records are stored in, one file each
sources     the data sets that `data.dataset` can name: where their records come from
digits      the embedded data set
synthetic   meaningless records that fill a batch
pipeline    shuffle, shard, process, pack, prefetch
packing     samples into the rows of a batch
unreadable  what happens to records with an unreadable image
"""
