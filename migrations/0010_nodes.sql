-- Several nodes on one database: who they are, what they can, and what runs need.
ALTER TABLE nodes ADD COLUMN name TEXT NOT NULL DEFAULT '';
-- As in leases, NODE:BOOT; empty: it ended in an orderly way.
ALTER TABLE nodes ADD COLUMN boot TEXT NOT NULL DEFAULT '';
ALTER TABLE nodes ADD COLUMN version TEXT NOT NULL DEFAULT '';
-- 1: an operator wants it to claim nothing.
ALTER TABLE nodes ADD COLUMN draining BIGINT NOT NULL DEFAULT 0;
-- Runs that it takes at one time.
ALTER TABLE nodes ADD COLUMN slots BIGINT NOT NULL DEFAULT 0;

CREATE TABLE node_capabilities (
    node TEXT NOT NULL,
    capability TEXT NOT NULL,
    PRIMARY KEY (node, capability)
);

CREATE TABLE run_needs (
    run TEXT NOT NULL,
    need TEXT NOT NULL,
    PRIMARY KEY (run, need)
);

-- Whose container engine the container is at.
ALTER TABLE attempts ADD COLUMN node TEXT NOT NULL DEFAULT '';
