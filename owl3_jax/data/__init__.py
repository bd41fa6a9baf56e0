"""Data sets, and the pipeline from their records to training batches.

readers     formats that records are stored in, one file each
sources     what `data.sources` can name: data sets, files and folders
digits      the embedded data set
synthetic   meaningless records that fill a batch
pipeline    shuffle, shard, process, pack, prefetch
lanes       rows of batches, each packed by a lane of its own
samples     a record as a sample that fits a row
skipped     what happens to records that cannot be used
"""
