-- How many Tasks an installation has opened lately is counted; those from before this count as opened without one.
ALTER TABLE task ADD COLUMN installation INTEGER;
