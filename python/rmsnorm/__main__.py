from rmsnorm.cli import app

app()
