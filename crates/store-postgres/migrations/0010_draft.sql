-- Its pull request is to be a draft, whatever its proof says.
ALTER TABLE task ADD COLUMN as_draft boolean NOT NULL DEFAULT false;

-- Older binaries do not know the event of a Run that was stopped alone.
UPDATE ledger SET oldest_reader = 10;
