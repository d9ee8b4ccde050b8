# refused: services.fettle.k3s.agentTokenFile would lie in the Nix store
{
  services.fettle.k3s = {
    enable = true;
    certManager = false;
    keda = false;
    charts.fettle = "/srv/bundle/charts/fettle.tgz";
    agentTokenFile = ../base.nix;
  };
}
