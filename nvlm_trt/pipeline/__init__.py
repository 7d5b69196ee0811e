"""The build: stages with fingerprints, a manifest, a lock, and a runner that resumes."""
