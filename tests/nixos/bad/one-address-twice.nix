# refused: give them different ports
{
  imports = [ ../base.nix ];
  services.fettle.settings.server.internal_listen = "127.0.0.1:8080";
}
