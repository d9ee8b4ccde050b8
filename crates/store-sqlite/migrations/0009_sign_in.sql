-- From where an account signed in and failed to. `network` is what counts as one address.
CREATE TABLE account_address (
    account_id BLOB NOT NULL REFERENCES account (id),
    network TEXT NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0,
    failed_at INTEGER,
    signed_in_at INTEGER,
    -- The later of the two.
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (account_id, network)
) STRICT;
CREATE INDEX account_address_seen ON account_address (seen_at);

-- Sessions that are there came from where people are.
INSERT INTO account_address (account_id, network, signed_in_at, seen_at)
SELECT account_id, address, max(created_at), max(created_at) FROM session
WHERE address NOT LIKE '%:%' GROUP BY account_id, address;

-- Who an account is to a provider of sign-ins.
CREATE TABLE identity (
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    account_id BLOB NOT NULL REFERENCES account (id),
    PRIMARY KEY (issuer, subject)
) STRICT;
CREATE INDEX identity_account ON identity (account_id);
