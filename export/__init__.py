"""esrgan_deploy.export"""
