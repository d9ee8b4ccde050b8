# refused: services.fettle.k3s.tokenFile would lie in the Nix store
{
  services.fettle.k3s = {
    enable = true;
    certManager = false;
    keda = false;
    charts.fettle = "/srv/bundle/charts/fettle.tgz";
    tokenFile = ../base.nix;
  };
}
