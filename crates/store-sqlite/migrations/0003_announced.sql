-- How far other programs were told of events: from here on. Nobody was promised what happened before.
ALTER TABLE ledger ADD COLUMN announced_seq INTEGER NOT NULL DEFAULT 0;
UPDATE ledger SET announced_seq = coalesce((SELECT max(seq) FROM event), 0);
