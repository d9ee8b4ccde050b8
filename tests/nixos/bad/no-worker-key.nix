# refused: make it with `openssl rand -hex 32`
{ services.fettle.enable = true; }
