"""esrgan_deploy"""
