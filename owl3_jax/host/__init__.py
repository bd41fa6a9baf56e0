"""What a process needs from the machine that it runs on.

command_line       `--config FILE[:ARGUMENT]`, overrides of its fields, and a subcommand's own flags
distributed        starts the processes of a run, and names those that are missing
lifeline           whether they are still there
signals            SIGTERM and SIGINT as a request to stop
files              files that are written whole or not at all
compilation_cache  where compiled programs are kept
array_cache        arrays in a limited number of bytes
progress           the one progress bar
source             a digest of this package's code
"""
