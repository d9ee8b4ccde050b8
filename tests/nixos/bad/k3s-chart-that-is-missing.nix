# refused: services.fettle.k3s.charts."keda" is missing
{
  services.fettle.k3s = {
    enable = true;
    certManager = false;
    charts.fettle = "/srv/bundle/charts/fettle.tgz";
  };
}
