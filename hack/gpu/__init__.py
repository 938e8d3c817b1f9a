"""What only a GPU shows: ``make gpu-check``. Each part of ``__main__.PARTS`` proves one thing and can run alone."""
