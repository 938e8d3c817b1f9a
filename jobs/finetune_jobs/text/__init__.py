"""Operations on a single text: cleaning, language, secrets, personal data, redaction."""
