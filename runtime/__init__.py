"""esrgan_deploy.runtime"""
