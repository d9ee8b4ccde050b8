-- A comment that tells of progress is an effect of its own, which older binaries cannot read.
UPDATE ledger SET oldest_reader = 6;
