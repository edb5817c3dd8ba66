"""A folder of shards made in parallel: resumable, killable, repeatable sample by sample."""
