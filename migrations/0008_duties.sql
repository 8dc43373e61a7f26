-- Work that one process at a time may do: reading the inbox, sweeping, one lane of effects.
CREATE TABLE duties (
    name TEXT NOT NULL PRIMARY KEY,
    -- NODE:BOOT, as in runs.lease_owner.
    owner TEXT NOT NULL,
    until BIGINT NOT NULL
);
