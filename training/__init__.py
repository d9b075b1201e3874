"""Training of the generators that `esrgan_deploy.export` exports."""
