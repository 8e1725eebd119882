"""Review of pairs by people in Argilla; its commands come with a later release."""
