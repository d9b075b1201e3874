"""esrgan_deploy.benchmarks"""
