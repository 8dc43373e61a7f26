-- Artifacts that are kept for a while only: files for download, sessions of agents. NULL: as long as their run.
ALTER TABLE artifacts ADD COLUMN expires_at BIGINT;

CREATE INDEX artifacts_expiry ON artifacts (expires_at) WHERE expires_at IS NOT NULL;
