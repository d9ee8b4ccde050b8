-- Its pull request is to be a draft, whatever its proof says.
ALTER TABLE task ADD COLUMN as_draft INTEGER NOT NULL DEFAULT 0;
