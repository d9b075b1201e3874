"""esrgan_deploy.engines"""
