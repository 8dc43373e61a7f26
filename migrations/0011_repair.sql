-- Deliveries that the forge could not hand over, until they came or were given up.
CREATE TABLE missed (
    remote TEXT NOT NULL,
    -- The delivery id: the same in every attempt.
    guid TEXT NOT NULL,
    -- The number of the newest attempt that is known; the forge is asked by it.
    attempt BIGINT NOT NULL,
    event TEXT NOT NULL,
    failed_at BIGINT NOT NULL,
    -- How often it was asked for.
    asked BIGINT NOT NULL,
    next_at BIGINT NOT NULL,
    PRIMARY KEY (remote, guid)
);

-- When something was last looked at, by a name.
CREATE TABLE looks (
    name TEXT NOT NULL PRIMARY KEY,
    at BIGINT NOT NULL
);

-- How often it was begun and neither ended nor put off: whoever began it died.
ALTER TABLE inbox ADD COLUMN taken BIGINT NOT NULL DEFAULT 0;
