-- Who sent an effect last (NODE:BOOT), and when the lists are looked at again for a second one of what was made again.
ALTER TABLE effects ADD COLUMN sender TEXT;
-- 0: never.
ALTER TABLE effects ADD COLUMN look_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE effects ADD COLUMN looks BIGINT NOT NULL DEFAULT 0;
CREATE INDEX effects_look ON effects (look_at) WHERE look_at > 0;
