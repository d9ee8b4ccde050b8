-- Who may sign in, with what, and what was done: accounts, their sessions and keys, and the chained log.
CREATE TABLE account (
    id uuid NOT NULL PRIMARY KEY,
    username text NOT NULL UNIQUE,
    email text NOT NULL UNIQUE,
    password_hash text NOT NULL,
    role text NOT NULL,
    active boolean NOT NULL,
    failures bigint NOT NULL DEFAULT 0,
    failed_at timestamptz,
    created_at timestamptz NOT NULL,
    last_login_at timestamptz
);

CREATE INDEX account_admin ON account (id) WHERE role = 'admin';

-- From where an account signed in and failed to. `network` is what counts as one address.
CREATE TABLE account_address (
    account_id uuid NOT NULL REFERENCES account (id),
    network text NOT NULL,
    failures bigint NOT NULL DEFAULT 0,
    failed_at timestamptz,
    signed_in_at timestamptz,
    -- The later of the two.
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (account_id, network)
);

CREATE INDEX account_address_seen ON account_address (seen_at);

-- Who an account is to a provider of sign-ins.
CREATE TABLE identity (
    issuer text NOT NULL,
    subject text NOT NULL,
    account_id uuid NOT NULL REFERENCES account (id),
    PRIMARY KEY (issuer, subject)
);

CREATE INDEX identity_account ON identity (account_id);

-- One sign-in of a browser, or one family of refresh tokens. `digest` is that of the secret that counts now.
CREATE TABLE session (
    id uuid NOT NULL PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES account (id),
    kind text NOT NULL,
    digest bytea NOT NULL UNIQUE,
    address text NOT NULL,
    user_agent text NOT NULL,
    created_at timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at timestamptz
);

CREATE INDEX session_account ON session (account_id, created_at);
CREATE INDEX session_expires ON session (expires_at);

-- Refresh tokens that were exchanged: one that comes again was copied.
CREATE TABLE spent_token (
    digest bytea NOT NULL PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES session (id) ON DELETE CASCADE
);

CREATE INDEX spent_token_session ON spent_token (session_id);

CREATE TABLE api_key (
    id uuid NOT NULL PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES account (id),
    name text NOT NULL,
    prefix text NOT NULL,
    digest bytea NOT NULL UNIQUE,
    scopes text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    last_used_at timestamptz
);

CREATE INDEX api_key_account ON api_key (account_id, created_at);

-- `digest` covers the row and the digest before it. Who appends holds the log's lock until its commit, so there is one chain.
CREATE TABLE audit_log (
    sequence bigint NOT NULL PRIMARY KEY,
    at timestamptz NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    object text NOT NULL,
    address text NOT NULL,
    result text NOT NULL,
    detail text NOT NULL,
    digest bytea NOT NULL
);

-- What access tokens are signed with: here, so that all who serve from this database know the same.
CREATE TABLE signing_key (
    id uuid NOT NULL PRIMARY KEY,
    secret bytea NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE INDEX signing_key_created ON signing_key (created_at, id);
