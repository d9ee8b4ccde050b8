# refused: set hardware.nvidia-container-toolkit.enable = true
{
  services.fettle.k3s = {
    enable = true;
    certManager = false;
    keda = false;
    charts.fettle = "/srv/bundle/charts/fettle.tgz";
    charts.nvidia-device-plugin = "/srv/bundle/charts/nvidia-device-plugin.tgz";
    nvidia = true;
  };
}
