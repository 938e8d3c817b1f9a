"""What is done to one text: cleaning, language, secrets, personal data, redaction."""
