-- A pool is for workers that have certain labels, too: in order and with commas between. Empty: any worker will do.
ALTER TABLE pool ADD COLUMN needs text NOT NULL DEFAULT '';
ALTER TABLE pool ALTER COLUMN needs DROP DEFAULT;
ALTER TABLE pool DROP CONSTRAINT pool_kind_order_version_model_key;
ALTER TABLE pool ADD UNIQUE (kind, order_version, model, needs);

-- Older binaries would put what needs a label before any worker, and cannot read that a comment tells of progress.
UPDATE ledger SET oldest_reader = 6;
