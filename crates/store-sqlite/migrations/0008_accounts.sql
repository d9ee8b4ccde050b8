-- Who may sign in, with what, and what was done: accounts, their sessions and keys, and the chained log.
CREATE TABLE account (
    id BLOB PRIMARY KEY,
    username TEXT NOT NULL UNIQUE,
    email TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    role TEXT NOT NULL,
    active INTEGER NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0,
    failed_at INTEGER,
    created_at INTEGER NOT NULL,
    last_login_at INTEGER
) STRICT;
CREATE INDEX account_role ON account (role, active);

-- One sign-in of a browser, or one family of refresh tokens. `digest` is that of the secret that counts now.
CREATE TABLE session (
    id BLOB PRIMARY KEY,
    account_id BLOB NOT NULL REFERENCES account (id),
    kind TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE,
    address TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    ended_at INTEGER
) STRICT;
CREATE INDEX session_account ON session (account_id, created_at);
CREATE INDEX session_expires ON session (expires_at);

-- Refresh tokens that were exchanged: one that comes again was copied.
CREATE TABLE spent_token (
    digest BLOB PRIMARY KEY,
    session_id BLOB NOT NULL REFERENCES session (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX spent_token_session ON spent_token (session_id);

CREATE TABLE api_key (
    id BLOB PRIMARY KEY,
    account_id BLOB NOT NULL REFERENCES account (id),
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    last_used_at INTEGER
) STRICT;
CREATE INDEX api_key_account ON api_key (account_id, created_at);

-- `digest` covers the row and the digest before it.
CREATE TABLE audit_log (
    sequence INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    address TEXT NOT NULL,
    result TEXT NOT NULL,
    detail TEXT NOT NULL,
    digest BLOB NOT NULL
) STRICT;

-- What access tokens are signed with: here, so that all who serve from this database know the same.
CREATE TABLE signing_key (
    id BLOB PRIMARY KEY,
    secret BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX signing_key_created ON signing_key (created_at, id, secret);
